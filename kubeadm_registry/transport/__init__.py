"""How a server is reached: SSH as OpenSSH is set up, a shell in it, and files and commands on this machine."""
