"""The command line: parses, calls the library, prints, and turns errors into exit codes. Nothing else does."""
