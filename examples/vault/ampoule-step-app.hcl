# What steps of the project "app" may read, and nothing else. One such policy for each project.

path "secret/data/app/*" {
  capabilities = ["read"]
}
path "database/creds/app" {
  capabilities = ["read"]
}

# The agent asks, with the step's token, whether the step may read what it names.
path "sys/capabilities-self" {
  capabilities = ["update"]
}
