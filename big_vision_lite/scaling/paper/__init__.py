"""The paper's tables, with how well each value is known."""
