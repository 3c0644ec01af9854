"""One module per kind of file; each satisfies `base.Reader`. `kinds.READERS` lists them."""
