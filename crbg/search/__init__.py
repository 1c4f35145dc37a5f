"""What steers a search: penalties, controllers, objectives, scores."""
