"""Python imports this at its start where `make coverage` puts this folder on the path."""

import covered

covered.begin()
