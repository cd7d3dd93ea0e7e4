"""report: what runs have found, as one page that opens anywhere: the answer, pictures, tables, what ran where."""
