"""What a run measures as TensorBoard event files."""

from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from fastdarts.engine.files import named_plainly
from fastdarts.spaces import Space


def no_tensorboard() -> str | None:
    """None where event files can be written, else the sentence why not."""
    try:
        import_module("torch.utils.tensorboard")
    except ImportError as error:
        return f"it needs the package tensorboard ({error}): pip install 'fastdarts[report]'"
    return None


class Board:
    """Writes event files into `folder`; those of a continued run hide what was written after its checkpoint.

    done  steps that the run has behind it
    """

    def __init__(self, folder: Path, space: Space, done: int = 0) -> None:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        with ExitStack() as opened:
            plain = opened.enter_context(named_plainly(folder))
            self.writer, self.space = writer(str(plain), purge_step=done + 1 if done else None), space
            self._opened = opened.pop_all()

    def step(self, number: int, train_loss: float, alpha_loss: float | None, images_per_s: float) -> None:
        """A logged step."""
        self._scalars(number, {"loss/train": train_loss, "loss/alpha": alpha_loss, "speed/images_per_s": images_per_s})

    def epoch(self, record: dict[str, Any], timing: dict[str, Any]) -> None:
        """A finished epoch: Search.run_epoch's record, and what of it is time (run_folder's timing.jsonl)."""
        number = record["step"]
        scalars = {"rate/weights": record["lr"], "hessian/largest_eigenvalue": record.get("hessian")}
        scalars |= {"epoch/train_loss": record["train_loss"], "epoch/alpha_loss": record["alpha_loss"]}
        scalars |= {f"valid/{name}": value for name, value in (record["valid"] or {}).items()}
        scalars |= {f"skips/{kind}": cell["skips"] for kind, cell in record["cells"].items()}
        scalars["speed/waiting_for_input"] = timing["input_seconds"] / timing["seconds"]
        scalars |= {f"seconds/{stage}": s for stage, s in timing.get("stages", {}).items()}
        for kind, rows in record["ops"].items():
            lists = record["candidates"][kind] if "candidates" in record else self.space.candidates(kind)
            for e, (names, row) in enumerate(zip(lists, rows, strict=True)):
                scalars |= {f"alpha_{kind}/edge{e}_{name}": weight for name, weight in zip(names, row, strict=False)}
        for kind, row in record.get("edges", {}).items():
            scalars |= {f"beta_{kind}/edge{e}": weight for e, weight in enumerate(row)}
        self._scalars(number, scalars)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
        self._opened.close()

    def _scalars(self, number: int, scalars: dict[str, float | None]) -> None:
        for name, value in scalars.items():
            if value is not None:
                self.writer.add_scalar(name, value, number)
