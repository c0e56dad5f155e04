"""A MongoDB database: `connection` has the client and the indexes, each other module one collection."""
