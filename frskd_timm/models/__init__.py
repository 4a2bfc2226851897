"""The students: timm models, registered with timm when this package is imported.

A student has no code specific to FRSKD, so any timm model can be one. Those of the paper are registered here.

To add a student, put a file `frskd_<family>.py` in this folder with

- `default_cfgs = generate_default_cfgs(with_weights({'<name>_frskd': {...}}))`, above the functions (each with
  `input_size` and `pool_size`), and
- one function `<name>_frskd` under `@register_model`, or `register_stock` if timm has that network.

The file is found automatically, and `tests/test_students.py` covers every registered name. Because of the prefix
`frskd_`, timm does not list the student under its own module of the same family.
"""

from importlib import import_module
from pkgutil import iter_modules

from frskd_timm.models._stock import exported_name, register_stock

__all__ = ["exported_name", "register_stock"]

for _module in iter_modules(__path__):
    if not _module.name.startswith("_"):
        import_module(f"{__name__}.{_module.name}")
