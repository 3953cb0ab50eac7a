"""Parts that every HTTP server of the package needs: its sockets and its connections."""
