"""Downloads in miniature, one module a source, made from how the real ones look."""
