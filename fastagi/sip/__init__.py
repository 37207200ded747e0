"""SIP, pure: values in, values out; only ``transport`` touches the network."""
