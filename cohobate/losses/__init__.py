"""What a student's error is: divergences and features, over one fused head."""
