# The agent's own policy. It makes steps' tokens, keeps them alive and ends them, and can read no secret.

# One token role for each project: auth/token/create/ampoule-step-PROJECT.
path "auth/token/create/ampoule-step-*" {
  capabilities = ["update"]
}

# By accessor: a step's token is not kept.
path "auth/token/renew-accessor" {
  capabilities = ["update"]
}
path "auth/token/revoke-accessor" {
  capabilities = ["update"]
}
path "auth/token/lookup-accessor" {
  capabilities = ["update"]
}

path "sys/leases/renew" {
  capabilities = ["update"]
}
path "sys/leases/revoke" {
  capabilities = ["update"]
}
path "sys/leases/lookup" {
  capabilities = ["update"]
}

# Its own token, at the end.
path "auth/token/revoke-self" {
  capabilities = ["update"]
}

# `ampoule secrets check`: what its own token may do.
path "sys/capabilities-self" {
  capabilities = ["update"]
}
