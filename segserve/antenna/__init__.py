"""A processing service made of executors: pipelines whose stages stay loaded, as Antenna calls them.

    messages    what goes over HTTP                chains      stages and pipelines, and a request as the queue keeps it
    catalogue   config.toml, manifests → pipelines answer      what was found → Antenna's response
    images      URLs → pixels                      boxes       polygons → boxes → crops
    line        the socket to a stage              stages      an executor that stays, or runs once per request
    chain       one request through its stages     resident    the process that keeps a pipeline

A request is a row of the queue, in a lane of its pipeline. The worker that takes it keeps the stages and waits for the
next one; see `resident`.
"""
