"""What a user or another program meets: the page, the server, the napari widget, and exports."""
