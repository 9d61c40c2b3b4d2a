"""Reports: figures, tables and one page of HTML."""
