"""Settings: fields, groups of fields, the commands' settings, published recipes."""

from fastdarts.settings.commands import (
    AnySearch,
    EvaluateSettings,
    RetrainSettings,
    RunSettings,
    SearchCifarSettings,
    SearchImagenetSettings,
    SearchSettings,
)
from fastdarts.settings.config_file import Given
from fastdarts.settings.fields import Settings, composed, group, setting
from fastdarts.settings.values import ConfigError

__all__ = [
    "AnySearch",
    "ConfigError",
    "EvaluateSettings",
    "Given",
    "RetrainSettings",
    "RunSettings",
    "SearchCifarSettings",
    "SearchImagenetSettings",
    "SearchSettings",
    "Settings",
    "composed",
    "group",
    "setting",
]
