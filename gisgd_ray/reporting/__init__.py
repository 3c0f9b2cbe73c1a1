"""Where results go: W&B runs, the progress display, figures and the HTML page."""
