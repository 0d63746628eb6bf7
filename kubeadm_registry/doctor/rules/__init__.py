"""The rules: each looks at a snapshot for one kind of trouble, and yields what it finds."""
