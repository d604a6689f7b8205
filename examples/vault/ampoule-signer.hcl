# For signing provenance by Transit: with this one key and this one digest, and its public keys.

path "transit/sign/ampoule/sha2-256" {
  capabilities = ["update"]
}
path "transit/keys/ampoule" {
  capabilities = ["read"]
}
