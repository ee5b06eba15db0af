"""``taylorseer-fx doctor``: what a bug report needs, in one paste, with a self-test."""
