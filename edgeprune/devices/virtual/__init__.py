"""The virtual board and the stand-in for trtexec."""
