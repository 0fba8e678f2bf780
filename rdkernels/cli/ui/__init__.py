"""What commands show on a terminal: tables, panes, streams of text."""
