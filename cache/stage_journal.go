package cache

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"strings"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// StageState says how far a staged file has come.
type StageState string

// The states of a staged file.
const (
	StageWriting StageState = "writing" // being written, or its writer was cut off
	StageFrozen  StageState = "frozen"  // complete and on disk; its push is not acknowledged
	StageFailed  StageState = "failed"  // its push failed; Reason says why
	StageDamaged StageState = "damaged" // the journal cannot be read; never written to one
)

const (
	maxJournal = 64 << 10 // bytes read of a journal
	maxReason  = 4 << 10  // bytes kept of a failure's text
)

// journal is journal.json: all that is known of staged bytes.
type journal struct {
	Registry string     `json:"registry"`
	Ref      refJSON    `json:"ref,omitzero"`
	Name     string     `json:"name,omitempty"`
	State    StageState `json:"state"`
	Reason   string     `json:"reason,omitempty"`
	Created  time.Time  `json:"created"`
	Updated  time.Time  `json:"updated"`
	Size     int64      `json:"size"`
	Digest   string     `json:"digest,omitempty"`
	PID      int        `json:"pid"`
}

// refJSON is a Ref with the field names of the files in the cache directory.
type refJSON struct {
	Collection string `json:"collection"`
	Image      string `json:"image,omitempty"`
	Tag        string `json:"tag,omitempty"`
}

func (j journal) digest() backends.Digest {
	d, _ := backends.ParseDigest(j.Digest)
	return d
}

// readJournal reads and checks the journal of one staged entry.
func readJournal(root *os.Root) (journal, error) {
	f, err := root.Open(stageJournal)
	if err != nil {
		return journal{}, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxJournal))
	if err != nil {
		return journal{}, err
	}
	var j journal
	if err := json.Unmarshal(raw, &j); err != nil {
		return journal{}, fmt.Errorf("journal: %w", err)
	}
	switch j.State {
	case StageWriting, StageFrozen, StageFailed:
	default:
		return journal{}, fmt.Errorf("journal: state %q", j.State)
	}
	if ref := backends.Ref(j.Ref); ref != (backends.Ref{}) {
		if err := ref.Check(); err != nil {
			return journal{}, fmt.Errorf("journal: %w", err)
		}
	} else if j.Name == "" {
		return journal{}, errors.New("journal: neither an image nor scratch")
	}
	return j, nil
}

// writeJournal replaces the journal in one step; durable also makes it, and
// the entry itself, survive a power cut. The caller holds f.mu.
func (f *Staged) writeJournal(durable bool) error {
	const aside = stageJournal + ".new"
	f.journal.Updated = f.stage.opt.Now().UTC()
	f.journal.PID = os.Getpid()
	raw, err := json.MarshalIndent(f.journal, "", "\t")
	if err != nil {
		return err
	}
	if err := f.root.Remove(aside); err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	out, err := f.root.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = out.Write(append(raw, '\n'))
	if err == nil && durable {
		err = out.Sync()
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = f.root.Rename(aside, stageJournal)
	}
	if err == nil && durable {
		if err = syncDir(f.root); err == nil {
			err = syncDir(f.stage.root)
		}
	}
	f.durable = durable && err == nil
	return err
}

// cut shortens s to at most n bytes of valid UTF-8.
func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "")
}

// syncDir makes the entries of a directory durable.
func syncDir(root *os.Root) error {
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
