"""The programs that make up a registry server, each with its files, its unit and its health."""
