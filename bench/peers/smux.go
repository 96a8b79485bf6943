package main

import (
	"net"

	"github.com/xtaci/smux"
)

type smuxSession struct{ *smux.Session }

func (s smuxSession) open() (stream, error)   { return s.OpenStream() }
func (s smuxSession) accept() (stream, error) { return s.AcceptStream() }

// Registers both versions of smux, named by their numbers.
func init() {
	for name, version := range map[string]int{"1": 1, "2": 2} {
		config := smux.DefaultConfig()
		config.Version = version
		muxers[name] = muxer{
			client: func(conn net.Conn) (session, error) {
				s, err := smux.Client(conn, config)
				return smuxSession{s}, err
			},
			server: func(conn net.Conn) (session, error) {
				s, err := smux.Server(conn, config)
				return smuxSession{s}, err
			},
		}
	}
}
