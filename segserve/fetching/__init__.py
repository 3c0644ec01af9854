"""Files that somebody else names by URL, fetched so that no request reaches what only this machine can reach.

`addresses` decides where a connection may go, `download` makes it: to the very address that was checked. Images of a
request come this way. (`fetch` is for parameters, whose URLs are those of the person who starts the run.)
"""

from segserve.fetching.addresses import Policy
from segserve.fetching.download import Limits, Unfetchable, download

__all__ = ["Limits", "Policy", "Unfetchable", "download"]
