"""What leaves the service because something happened: messages to webhooks."""
