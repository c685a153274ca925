"""Reports: HTML pages, plots and tables."""
