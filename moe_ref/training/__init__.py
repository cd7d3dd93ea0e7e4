"""Training the model of `moe_ref.lm` over ranks: what `commbench train` runs, and parts to use on their own."""
