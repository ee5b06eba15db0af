"""``taylorseer-fx app``: a page to choose settings on, and to see what they do to the pictures, the steps and the seconds."""
