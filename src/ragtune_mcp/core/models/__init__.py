"""Registered versions with lineage, the serving encoder, and exports."""
