"""Config → objects, one small function per stage. With `nmt.cli` the only reader of the config."""
