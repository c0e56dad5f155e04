"""One SQLite file: `database` has the connections and the tables, each other module one kind of thing that is stored."""
