"""`python -m stackfast`."""

from stackfast.service import main

main()
