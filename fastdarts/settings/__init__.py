"""WHAT can be set: fields, groups of fields, the commands' settings, published recipes."""

from fastdarts.settings.commands import RunSettings, SearchCifarSettings, SearchImagenetSettings, SearchSettings
from fastdarts.settings.fields import ConfigError, Settings, setting

__all__ = [
    "ConfigError",
    "RunSettings",
    "SearchCifarSettings",
    "SearchImagenetSettings",
    "SearchSettings",
    "Settings",
    "setting",
]
