"""What the services need from the outside, as Protocols in the domain's words: one module for each port. Adapters implement them; no
vendor type crosses."""
