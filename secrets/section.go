package secrets

// Section is one client's view of the settings.
type Section struct{}

// Get x.
func (s *Section) Get(env string, legacy ...string) (string, bool) { return "", false }
