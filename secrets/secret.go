package secrets

import (
	"fmt"
	"io"
	"log/slog"
)

// redacted is what a Secret shows instead of its value.
const redacted = "[redacted]"

// Secret is a value that must not be shown: fmt with any verb, log/slog,
// encoding/json and every encoder that uses TextMarshaler print "[redacted]",
// also for the zero Secret. Reveal is the only way to its value, so that a
// search for Reveal finds every place where a credential leaves this type.
//
// The value is behind a pointer because fmt cannot call the methods of an
// unexported field and prints its contents instead: then it prints an
// address. For the same reason == compares identity and not values.
type Secret struct{ value *string }

// NewSecret hides s. NewSecret("") is the zero Secret.
func NewSecret(s string) Secret {
	if s == "" {
		return Secret{}
	}
	return Secret{value: &s}
}

// Reveal gives the value, for the wire or a 0600 file and nothing else.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero reports that there is no value.
func (s Secret) IsZero() bool { return s.value == nil }

// String gives "[redacted]".
func (s Secret) String() string { return redacted }

// GoString gives "[redacted]".
func (s Secret) GoString() string { return redacted }

// Format writes "[redacted]" whatever the verb; %x would otherwise print the
// value in hexadecimal.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue gives "[redacted]".
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON gives "[redacted]" as a JSON string.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalText gives "[redacted]".
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
