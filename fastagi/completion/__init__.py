"""The rules of call completion: pure, standard library only, time handed in."""
