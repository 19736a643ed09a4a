"""The bridge to DVC: skip, restore or run a stage, and push and pull what stages write."""
