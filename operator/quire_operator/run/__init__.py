"""`quire-operator run`: what keeps the reconcile going for as long as this replica leads."""
