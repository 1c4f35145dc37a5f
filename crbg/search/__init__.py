"""Components of a ticket search: penalties, density controllers, objectives and pruning scores."""
