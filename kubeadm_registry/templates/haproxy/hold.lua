-- A write without a writer waits until the agent has named one: 8 s at most, also if it waits for two things.
local LONGEST, STEP = 8000, 50

local function milliseconds()
  local now = core.now()
  return now.sec * 1000 + now.usec // 1000
end

local function hold(name, backend)
  core.register_action(name, {"http-req"}, function(txn)
    local ends = txn:get_priv() or milliseconds() + LONGEST
    txn:set_priv(ends)
    while txn.f:nbsrv(backend) == 0 and milliseconds() < ends do
      core.msleep(STEP)
    end
  end)
end

hold("hold", "writer")
hold("hold_new", "newwork")
