"""``taylorseer-fx demo``: digits generated three ways in one run, measured, shown as a picture and a table."""
