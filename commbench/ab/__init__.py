"""A/B: two settings of one program, in fresh launches by turns, until it is known which is faster."""
