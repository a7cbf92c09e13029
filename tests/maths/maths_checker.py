"""The checker behind the import hook: as static typing has it, an int is a float too."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
