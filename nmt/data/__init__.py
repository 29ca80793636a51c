"""Files → token store → batches: reading and filtering pairs, bucketing by length."""
