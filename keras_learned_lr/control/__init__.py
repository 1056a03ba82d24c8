"""What a controller does: action forms, controllers, export."""
