"""From files of any format to pixels."""
