"""The faces: command line, reports, pages."""
