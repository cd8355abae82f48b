"""Settings: every flag parses, is checked and saved; wrong ones end with one line and status 2."""

from dataclasses import Field, asdict, dataclass, fields
from typing import get_type_hints

import pytest

from fastdarts.inputs.source import IMAGENET
from fastdarts.settings import (
    ConfigError,
    EvaluateSettings,
    RetrainSettings,
    SearchCifarSettings,
    SearchImagenetSettings,
    Settings,
    setting,
)
from fastdarts.settings.values import choices

S = SearchImagenetSettings


def given(*argv):
    return S.given(argv, "prog", "what it does")


def test_imagenet_defaults_are_pc_darts():
    """The published settings (semantics of PC-DARTS' ImageNet search) with MAE-NAS' mask."""
    s = S()
    assert (s.batch_size, s.epochs, s.begin, s.warmup_epochs) == (1024, 50, 35, 5)
    assert (s.learning_rate, s.learning_rate_min, s.momentum, s.weight_decay, s.grad_clip) == (0.5, 0.0, 0.9, 3e-4, 5.0)
    assert (s.arch_learning_rate, s.arch_weight_decay, s.arch_grad_clip) == (6e-3, 1e-3, 5.0)
    assert (s.train_fraction, s.val_fraction) == (0.1, 0.025)
    assert (s.init_channels, s.layers, s.partial_channels, s.image_size) == (16, 8, 2, 224)
    assert (s.objective, s.mask_ratio, s.patch_size, s.loss, s.mask_token) == ("mae", 0.5, 8, "l1", "zero")
    assert (s.channel_sampling, s.edge_normalization, s.unrolled) == ("first", True, False)


def test_cifar_defaults_are_darts():
    """The published settings (semantics of DARTS' CIFAR search) with MAE-NAS' mask on patches of 4."""
    s = SearchCifarSettings()
    assert (s.batch_size, s.epochs, s.begin, s.warmup_epochs) == (64, 50, 0, 0)
    assert (s.learning_rate, s.learning_rate_min, s.momentum, s.weight_decay, s.grad_clip) == (0.025, 1e-3, 0.9, 3e-4, 5.0)
    assert (s.arch_learning_rate, s.arch_weight_decay, s.arch_grad_clip) == (3e-4, 1e-3, 0.0)
    assert (s.train_fraction, s.val_fraction) == (0.5, 0.5)
    assert (s.init_channels, s.layers, s.partial_channels, s.image_size, s.crop_padding) == (16, 8, 1, 0, 4)
    assert (s.objective, s.mask_ratio, s.patch_size, s.loss, s.mask_token) == ("mae", 0.5, 4, "l1", "zero")
    assert (s.channel_sampling, s.edge_normalization, s.unrolled) == ("first", False, False)


def test_changed_default_keeps_help_and_range(capsys):
    with pytest.raises(ConfigError, match="learning_rate: 0 is out of range, it must be above 0"):
        SearchCifarSettings(learning_rate=0)
    with pytest.raises(SystemExit):
        SearchCifarSettings.given(["--help"], "prog", "what it does")
    out = " ".join(capsys.readouterr().out.split())
    assert "learning rate of the weights' SGD, for the whole batch (default: 0.025)" in out
    assert "epochs before the first update of alpha; scaled if only --epochs is given (default: 0)" in out


@pytest.mark.parametrize("name", ["data", "save", "train_list", "val_list", "space", "benchmark", "cache_folder"])
def test_home_folder_is_expanded_in_every_path(name, tmp_path, monkeypatch):
    """Behind "=" no shell finds it, nor in a file or from Python."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert getattr(S.make(given(f"--{name}=~/a b")), name) == f"{tmp_path}/a b"
    assert getattr(S(**{name: "a~/~"}), name) == "a~/~"
    monkeypatch.setattr("os.path.expanduser", lambda text: text)  # as without a home folder
    with pytest.raises(ConfigError, match="~/a: no home folder for ~"):
        S(**{name: "~/a"})


def test_moved_path_is_not_a_different_setting():
    """The contents are compared when the run continues; a name is not a path, and neither is None."""
    there = S(data="/b", train_list="/b/t", val_list="/b/v", space="/b/x.json")
    saved = asdict(S(data="/a", train_list="/a/t", val_list="/a/v", space="/a/x.json"))
    assert there.differences(saved) == []
    assert S(data="/b", space="s1").differences(asdict(S(data="/a"))) == ["--space is 's1' but was 's0'"]
    assert len(S().differences(saved)) == 4


def test_only_given_flags_are_returned():
    assert given() == {}
    assert given("--epochs", "3", "--no-edge_normalization") == {"epochs": 3, "edge_normalization": False}


COMMANDS = (S, SearchCifarSettings, RetrainSettings, EvaluateSettings)
# of all commands, each once: most are shared, and then have one text
FLAGS = {(f.name, f.metadata["help"]): (cls, f) for cls in COMMANDS for f in fields(cls) if not f.metadata["positional"]}


@pytest.mark.parametrize(("cls", "f"), FLAGS.values(), ids=lambda of: of.name if isinstance(of, Field) else of.__name__)
def test_flags_accept_underscores_and_dashes(cls, f):
    """Every field is a flag in both spellings, and its value survives the way to settings and back."""
    known = choices(f, get_type_hints(cls)[f.name])
    value = known[-1] if known else {bool: True, int: 7, float: 0.25}.get(type(f.default), "json")  # a module, for --modules
    others = (f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}" for name in (f.name, *f.metadata["also"]))
    for flag in (f"--{f.name}", *others):
        argv = (flag,) if value is True else (flag, str(value))
        assert cls.given(argv, "prog", "what it does") == {f.name: value}
    assert cls.make(asdict(cls(**{f.name: value}))) == cls(**{f.name: value})


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--epoch", "3"), "unrecognized arguments: --epoch"),
        (("--epochs", "three"), "--epochs"),
        (("--objective", "magic"), "invalid choice: 'magic'"),
        (("--loss",), "expected one argument"),
        (("stray",), "unrecognized arguments: stray"),
    ],
)
def test_invalid_flags_exit_with_status_2(argv, says, capsys):
    with pytest.raises(SystemExit) as stop:
        given(*argv)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and says in err and err.count("\n") == 1 and err.startswith("prog: error: ")


def test_help_lists_every_flag_and_default(capsys):
    with pytest.raises(SystemExit) as stop:
        given("--help")
    out = capsys.readouterr().out
    assert stop.value.code == 0
    for f in fields(S):
        assert f"--{f.name}" in out
    assert "(default: 1024)" in out


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("mask_ratio", 0.0, "above 0"),
        ("mask_ratio", 1.0, "below 1"),
        ("mask_ratio", float("nan"), "out of range"),
        ("batch_size", -1, "at least 0"),
        ("epochs", 0, "at least 1"),
        ("layers", 2, "at least 3"),
        ("momentum", 1.0, "below 1"),
        ("seed", -1, "at least 0"),
        ("workers", -2, "at least -1"),
        ("learning_rate", 0.0, "above 0"),
        ("objective", "magic", "not one of mae, supervised"),
        ("amp", "half", "not one of off, bf16, fp16"),
        ("cuda_graph", "always", "not one of auto, on, off"),
        ("optimizer_backend", "nvidia", "not one of torch, apex"),
        ("tf32", 1, "not true or false"),
        ("epochs", "3", "not an integer"),
        ("epochs", True, "not an integer"),
        ("learning_rate", "fast", "not a number"),
        ("save", 3, "not text"),
    ],
)
def test_values_are_checked(name, value, says):
    with pytest.raises(ConfigError, match=says) as error:
        S(**{name: value})
    assert f"--{name}" in str(error.value)


def test_integers_are_numbers_and_none_only_as_default():
    assert S(learning_rate=1, data=None).learning_rate == 1
    with pytest.raises(ConfigError):
        S(epochs=None)


def test_nesterov_needs_momentum():
    with pytest.raises(ConfigError, match="--nesterov: Nesterov's momentum needs a --momentum above 0"):
        S(nesterov=True, momentum=0)
    assert not S(momentum=0).nesterov


def test_make_rejects_unknown_settings():
    with pytest.raises(ConfigError, match="unknown settings: speed"):
        S.make({"speed": 11})


def test_differences_ignore_resumable_settings():
    saved = asdict(S())
    assert S().differences(saved) == []
    assert S(workers=3, log_every=7).differences(saved) == []
    (line,) = S(batch_size=256).differences(saved)
    assert line == "--batch_size is 256 but was 1024"
    del saved["seed"]
    assert S().differences(saved) == ["--seed is 0 but was None"]


def test_missing_saved_setting_means_former_behaviour():
    saved = asdict(S())
    for name in ("amp", "tf32", "deterministic", "optimizer_backend", "cuda_graph"):
        del saved[name]
    assert S().differences(saved) == []
    assert S(optimizer_backend="apex", cuda_graph="off").differences(saved) == []
    later = "method", "space", "decoder", "early_stop", "early_stop_from", "nesterov", "progressive"
    for name in (*later, "skip_dropout", "skip_limit"):
        del saved[name]
    assert S().differences(saved) == []
    assert S(amp="bf16", tf32=True).differences(saved) == ["--amp is 'bf16' but was 'off'", "--tf32 is True but was False"]
    small = asdict(SearchCifarSettings())
    del small["method"]
    assert SearchCifarSettings().differences(small) == []


def test_auto_is_accepted_where_defined(capsys):
    """A continued run keeps what was chosen then."""
    assert given("--batch_size", "auto") == {"batch_size": 0} == given("--batch_size", "0")
    assert S(batch_size=0).differences(asdict(S(batch_size=96))) == []
    assert S(batch_size=64).differences(asdict(S(batch_size=96))) == ["--batch_size is 64 but was 96"]
    for flag, value in (("--batch_size", "some"), ("--epochs", "auto")):
        with pytest.raises(SystemExit):
            given(flag, value)
        err = capsys.readouterr().err
        assert flag in err and value in err and err.count("\n") == 1


def test_tf32_is_off_by_default():
    s = S()
    assert (s.amp, s.tf32, s.cuda_graph, s.optimizer_backend) == ("off", False, "auto", "torch")


def test_sample_recipe_has_known_settings():
    sample = S.make(IMAGENET.sample)
    assert sample.begin < sample.epochs


def test_percent_signs_in_help_are_escaped(capsys):
    @dataclass(frozen=True, kw_only=True)
    class Odd(Settings):
        share: float = setting(0.5, "of 100 % of it", at_least=0)

    with pytest.raises(SystemExit):
        Odd.given(["--help"], "prog", "odd")
    assert "of 100 % of it" in capsys.readouterr().out
